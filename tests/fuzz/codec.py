"""Rubbish at the decoders and checks, guided by coverage (atheris); outside CI.

    python -m tests.fuzz.codec -runs=1000000

Takes libFuzzer's own flags. Ends with a trace, and the input, if anything but the contract's own errors came out.
"""

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["jido_nats.core"]):
    from jido_nats.core import codec, requests
    from jido_nats.core.codec import DecodeError, Encoding
    from jido_nats.core.session import SessionRecord
    from jido_nats.errors import BadRequest, TooLarge

KINDS = (
    requests.CreateRequest,
    requests.ListRequest,
    requests.TerminateRequest,
    requests.HistoryRequest,
    SessionRecord,
)


def one_input(data: bytes) -> None:
    """Everything that bytes from outside go through; only the contract's own errors may come out."""
    for encoding in Encoding:
        for kind in KINDS:
            try:
                value = codec.decode(data, kind, encoding)
            except DecodeError:
                continue
            if isinstance(value, requests.CreateRequest):
                _check_create(value)
        with contextlib.suppress(DecodeError):
            codec.decode_event(data, encoding)


def _check_create(request: requests.CreateRequest) -> None:
    """What passes the check can be stored, and comes back the same from both encodings."""
    try:
        request.check()
        request.check_size(32 * 1024)
    except (BadRequest, TooLarge):
        return
    for encoding in Encoding:
        again = codec.decode(codec.encode(request, encoding), requests.CreateRequest, encoding)
        assert again == request, (encoding, request, again)


def main() -> None:
    """Fuzz until the runs are over."""
    atheris.Setup([*sys.argv, "-max_len=512"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
