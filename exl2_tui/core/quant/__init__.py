"""Making EXL2 models: calibration, adaptive GPTQ, measuring, allocation and the resumable job around them."""
