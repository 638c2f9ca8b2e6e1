"""Records and images become one folder, or one file, that shows them in any browser, without a server or a network."""
