// Program nethttp says what Go's net/http makes of answers: of each line of JSON on standard input (the method of a request, and the bytes that a server answers with before it
// hangs up, in base64), it prints a line with the status and the body, or with the error.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

type question struct {
	Method string `json:"method"`
	Raw    []byte `json:"raw"`
}

type answer struct {
	Status int               `json:"status"`
	Length int64             `json:"length"`
	Body   []byte            `json:"body"`
	Header map[string]string `json:"header"`
	Error  string            `json:"error"`
}

func ask(q question) (a answer) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		conn.Write(q.Raw)
	}()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequest(q.Method, fmt.Sprintf("http://%s/v2/", listener.Addr()), nil)
	if err != nil {
		panic(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer response.Body.Close()
	a = answer{Status: response.StatusCode, Length: response.ContentLength, Header: map[string]string{}}
	for name := range response.Header {
		a.Header[name] = response.Header.Get(name)
	}
	if a.Body, err = io.ReadAll(response.Body); err != nil {
		return answer{Error: err.Error()}
	}
	return a
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			panic(err)
		}
		out.Encode(ask(q))
	}
}
