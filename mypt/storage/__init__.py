"""Where folders go and come from: the hub, the files that are uploaded, the model card."""
