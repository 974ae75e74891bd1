"""Core ML packages: conversion and quantization."""
