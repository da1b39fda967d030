"""One file, one platform. Read each beside the vendor's page it links to."""
