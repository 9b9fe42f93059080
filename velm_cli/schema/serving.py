"""Options of `velm serve`: where it listens, who may use it, and how much it takes on."""

from dataclasses import dataclass, field

from velm_cli.schema.bounds import within
from velm_cli.schema.paths import path


@dataclass
class ServeConfig:
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 = all networks of this machine (set a token then)
    port: int = within(8000, least=0, most=65_535)  # 0 = any free port, which is printed
    hosts: list[str] = field(
        default_factory=list
    )  # other names of this server: [velm.example.org]; see docs/serving.md
    token_file: str | None = path(None)  # file with a secret that every request must carry; or set VELM_SERVE_TOKEN
    batch_size: int = within(64, least=1, most=4096)  # requests that the model processes together; 1 = no batching
    wait_ms: float = within(5.0, least=0, most=1000)  # wait this long for images that are being decoded; 0 = never
    queue: int = within(256, least=1, most=100_000)  # requests waiting for the model; further ones get 503
    connections: int = within(512, least=1, most=100_000)  # open at once; further ones get 503
    body_mb: float = within(16.0, above=0, most=1024)  # size of a request; larger ones get 413
    bodies_mb: float = within(512.0, above=0, most=1_000_000)  # of all requests together; 503 beyond
    max_pixels: int = within(50_000_000, least=1)  # of an image; dataset.max_pixels of the run applies, too
    head_seconds: float = within(10.0, above=0, most=3600)  # for a request's headers; slower senders are cut off
    read_seconds: float = within(30.0, above=0, most=3600)  # for a request's body; 408 after that
    request_seconds: float = within(60.0, above=0, most=86_400)  # for a whole request; 504 after that
    stop_seconds: float = within(30.0, least=0, most=3600)  # after SIGTERM, for the requests that have begun
    max_beams: int = within(10, least=1, most=1000)  # that a request may ask for
    max_captions: int = within(10, least=1, most=1000)  # n, that a request may ask for
    max_length: int = within(60, least=1, most=10_000)  # tokens, that a request may ask for
    access_log: bool = False  # a line for each request; otherwise one per minute with counts
