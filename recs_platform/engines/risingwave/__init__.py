"""RisingWave behind the seam: a thin driver, and the statements it is sent."""
