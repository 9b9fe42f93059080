"""The former home of `velm_cli.lines`, for the modules that still import it from here."""

from velm_cli.lines import Refused, load_json, most_unpacked, parse_json, read_bytes, text_lines

__all__ = ["Refused", "load_json", "most_unpacked", "parse_json", "read_bytes", "text_lines"]
