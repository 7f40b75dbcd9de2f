"""Plots of the HTML report, drawn with matplotlib as inline SVG."""
