"""Problems with a global lower level, one file each."""
