"""Manifests, video files, transforms and training clips."""
