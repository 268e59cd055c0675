"""Text files to cleaned documents."""
