"""A JavaScript engine for SPICE on the Java versions that have none, in two small Java classes.

SPICE 1.0 writes its result through `javax.script`: it puts its JSON into the variable `jsonString`,
evaluates one line that indents it, and takes the variable `result`. Java 15 removed the JDK's only
engine, and SPICE then dies of a null pointer after minutes of parsing. These classes (ours, they need
only the JDK) give the JSON back as it is. `build.py` makes the jar; a test makes it again and compares.
"""

from __future__ import annotations

from pathlib import Path

ENGINE_JAR = Path(__file__).resolve().parent / "engine.jar"
