"""The demo's web services: `shop`, which is mbridge's target, and `stock`, which answers the shop alone."""

import http.server
import json
import socket


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"i_am": socket.gethostname(), "you_come_from": self.client_address[0]}).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Web).serve_forever()
