"""Sources, which windows are read from: tensors, arrays, files. Knows no chunk and no network."""
