"""Measures of pixels in which photos and generated images differ, sentences about them, and checks of sentences.

measured = measure_image(image)                         # registry.py: every measure, from an array
calibration = MeasureCalibration.load(folder)           # calibration.py: values of photos, informative measures
measured_reasons(measured, calibration, "generated", seed="an id")        # reasons.py
claim = read_claim("Its noise is less even than in 90 % of photos of this size.")    # claims.py
check_claim(claim, measured, calibration)               # confirmed, contradicted or unchecked
"""
