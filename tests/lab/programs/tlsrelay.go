// tls-relay PORT FOLDER SOCKET: dockerd's TLS listener, which is Go's as well, in front of a Unix socket.
// FOLDER holds ca.pem, servercert.pem and serverkey.pem. An end in one direction is passed on as that, either way.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

type halves interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func main() {
	folder := os.Args[2]
	authority, err := os.ReadFile(folder + "/ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	own, err := tls.LoadX509KeyPair(folder+"/servercert.pem", folder+"/serverkey.pem")
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	listener, err := tls.Listen("tcp", "127.0.0.1:"+os.Args[1], config)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn.(*tls.Conn))
	}
}

func serve(client *tls.Conn) {
	defer client.Close()
	if client.Handshake() != nil {
		return
	}
	engine, err := net.Dial("unix", os.Args[3])
	if err != nil {
		log.Print(err)
		return
	}
	defer engine.Close()
	over := make(chan bool)
	pass := func(to, from halves) {
		io.Copy(to, from)
		to.CloseWrite()
		over <- true
	}
	go pass(engine.(*net.UnixConn), client)
	go pass(client, engine.(*net.UnixConn))
	<-over
	<-over
}
