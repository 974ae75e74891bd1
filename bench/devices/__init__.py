"""Devices that measure: this machine, a phone's browser, another computer, an Android phone, an Apple device."""
