"""`mypt demo MODEL [MODEL2]`: serve a local web page for one model, or for two side by side."""

import argparse

from mypt.cli.frameworks import load_transformers
from mypt.terminal import say

HELP = "a local web page to try a model, or two side by side"
NO_GRADIO = "the page needs gradio: pip install mypt[demo]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    add("other", metavar="MODEL2", nargs="?", help="a second one, beside it: such as the model after its adaptation")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in your network use the page")
    add("--port", type=int, default=7860, help="port to listen on; 0 for a free one")
    add("--trust-remote-code", action="store_true", help="run model code that comes with a hub model")


def run(args: argparse.Namespace) -> None:
    import importlib.util
    import os
    from contextlib import suppress

    from mypt.checkpoints.load import load_model, require_model
    from mypt.demo.server import address, bind, is_local, make_server
    from mypt.errors import MyPTError

    if importlib.util.find_spec("gradio") is None:
        raise MyPTError(NO_GRADIO)
    names = [args.model] + ([args.other] if args.other else [])
    if not 0 <= args.port < 2**16:
        raise MyPTError(f"--port is {args.port}; it must be from 0 to 65535")
    if len({*names}) < len(names):
        raise MyPTError(f"{args.model} is named twice; name another model, or one alone")
    for name in names:
        require_model(name)
    with bind(args.host, args.port) as listening:
        load_transformers()
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from mypt.checkpoints.probes import require_causal
        from mypt.demo.page import DemoModel, build_page, short_names
        from mypt.demo.run_view import view_run
        from mypt.generation.engine import Engine
        from mypt.tokenization.load import load_tokenizer

        models = []
        for name, short in zip(names, short_names(names), strict=True):
            model = load_model(name, trust_remote_code=args.trust_remote_code)
            require_causal(model, name)
            models.append(DemoModel(name, short, Engine(model, load_tokenizer(name), say=_say), view_run(name)))
        server = make_server(build_page(models), local=is_local(listening))
        say(f"{address(listening)} shows the page; Ctrl-C ends it")
        if not is_local(listening):
            _say("whoever reaches this machine in the network can use the page, without a password")
        with suppress(KeyboardInterrupt):  # which the server has seen: it is a request to end
            server.run(sockets=[listening])
        say("ended")


def _say(line: str) -> None:
    say(f"mypt demo: {line}", error=True)
