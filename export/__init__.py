"""Artifacts: conversion, calibration, parity, bundles, and the sessions that run them."""
