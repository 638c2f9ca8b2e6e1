"""Model families: what differs between them, each behind the `Family` protocol of `tsd.backbones.base`."""
