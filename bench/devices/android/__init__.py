"""Measure on an Android phone: adb, and TensorFlow Lite's own benchmark tool."""
