"""What this machine is and what follows from it: device, memory, peak speed, choices. No torch at import."""
