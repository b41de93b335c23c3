"""From records to a data-efficiency report: numbers, pictures, one page."""
