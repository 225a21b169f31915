// probe NAME PORT: resolves with Go's own resolver, connects, prints what the server says. Built static (CGO_ENABLED=0).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"syscall"
	"time"
)

func main() {
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	out := map[string]any{}
	addresses, err := net.DefaultResolver.LookupHost(ctx, os.Args[1])
	var missing *net.DNSError
	if errors.As(err, &missing) {
		out["resolve"] = map[bool]string{true: "not found", false: "failed"}[missing.IsNotFound]
	} else {
		sort.Strings(addresses)
		out["addresses"] = addresses
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", net.JoinHostPort(os.Args[1], os.Args[2]))
		var number syscall.Errno
		if errors.As(err, &number) {
			out["connect"] = map[bool]string{true: "refused", false: number.Error()}[number == syscall.ECONNREFUSED]
		} else if err != nil {
			out["connect"] = err.Error()
		} else {
			said, _ := io.ReadAll(conn)
			out["own"] = conn.LocalAddr().(*net.TCPAddr).IP.String()
			out["said"] = string(said)
		}
	}
	line, _ := json.Marshal(out)
	fmt.Println(string(line))
}
