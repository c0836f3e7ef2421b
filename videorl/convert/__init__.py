"""One file per published checkpoint layout."""
