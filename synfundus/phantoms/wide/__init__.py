"""Variety ``wide``: eyes and photographs as different from each other as those of many clinics and cameras."""
