"""`moekit compare`: the experiment, what it measures, and its report.

`experiment.start` and `experiment.resume` are the way in from Python; `results` is the schema of what comes out.
"""
