"""Prepare text into dataset directories; append to them, take subsets, find shared text."""
