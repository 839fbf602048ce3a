"""The client that docs/serving.md shows, against a server of the same form."""

import http.server
import importlib.util
import json
import pathlib
import socket
import threading

import pytest

PATH = pathlib.Path(__file__).resolve().parents[1] / "docs/serving_client.py"
SPEC = importlib.util.spec_from_file_location("serving_client", PATH)
client = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(client)


@pytest.fixture
def server():
    """Answers each row with what it was sent, as TensorFlow Serving does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            rows = json.loads(self.rfile.read(length))["instances"]
            status, found = 200, {"predictions": rows}
            if self.path != "/v1/models/mrpc:predict":
                status, found = 404, {"error": "Servable not found"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_):
            pass

    served = http.server.HTTPServer(("localhost", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://localhost:{served.server_port}/v1/models"
    served.shutdown()
    served.server_close()


def test_rows_are_asked_about_together(server, capsys):
    arguments = [f"--url={server}/mrpc", "--text_a=It rains.", "--text_b=a=b"]
    assert client.main([*arguments, "--text_a=x", "--text_b="]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(map(json.loads, lines)) == [
        {"text_a": "It rains.", "text_b": "a=b"},
        {"text_a": "x", "text_b": ""},
    ]


def test_the_server_is_quoted(server, capsys):
    assert client.main([f"--url={server}/cola", "--text=x"]) == 1
    assert "Servable not found" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(capsys):
    assert client.main(["--url=http://localhost:1/v1/x", "--text=x"]) == 1
    assert "No answer from" in capsys.readouterr().err
    assert client.main(["--url=localhost:1/v1/x", "--text=x"]) == 1
    assert "must begin with http://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"", "No answer from"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "is not TensorFlow Serving"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"error": "no"}', "The server refused"),
    ],
)
def test_what_is_no_prediction_is_an_error(reply, message, capsys):
    with socket.create_server(("localhost", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        url = f"--url=http://localhost:{port}/v1/models/x"
        assert client.main([url, "--text=x"]) == 1
        thread.join()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "inputs", [[], ["text=x"], ["--text_a=x", "--text_b=y", "--text_b=z"]]
)
def test_inputs_that_make_no_rows_are_refused(inputs):
    with pytest.raises(SystemExit):
        client.main(["--url=http://localhost:1", *inputs])
