"""One volume by many: parts, and who does them."""
