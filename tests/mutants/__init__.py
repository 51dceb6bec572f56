"""One-line faults planted in the minimal reader and in the package's decoders, each of which some vector must find."""
