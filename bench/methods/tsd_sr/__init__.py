"""TSD-SR's students and the multi-step teacher."""
