"""This machine and the choices that follow from it: device, memory, peak speed, choices. No torch at import."""
