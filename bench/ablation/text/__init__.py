"""The domain of rendered lettering: images with a prior that a small teacher can really learn."""
