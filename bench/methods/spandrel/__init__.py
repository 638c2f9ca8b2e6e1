"""Networks that spandrel loads, such as Real-ESRGAN."""
