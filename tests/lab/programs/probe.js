// node probe.js NAME PORT: libuv's lookup (the C library's) and c-ares' resolve, which reads /etc/resolv.conf itself.
const dns = require("dns").promises;
const net = require("net");

async function main([name, port]) {
  const out = {};
  try {
    out.addresses = (await dns.lookup(name, { all: true })).map((one) => one.address).sort();
  } catch (error) {
    out.resolve = error.code === "ENOTFOUND" ? "not found" : "failed";
    return out;
  }
  out.resolved = await dns.resolve4(name).catch((error) => error.code);
  return new Promise((done) => {
    const socket = net.connect({ host: name, port: Number(port), family: 4 });
    let said = "";
    socket.on("connect", () => (out.own = socket.localAddress));
    socket.on("data", (data) => (said += data));
    socket.on("end", () => done({ ...out, said }));
    socket.on("error", (error) => done({ ...out, connect: error.code === "ECONNREFUSED" ? "refused" : error.code }));
  });
}
main(process.argv.slice(2)).then((out) => console.log(JSON.stringify(out)));
