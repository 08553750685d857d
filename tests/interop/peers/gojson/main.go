// Command gojson decodes documents with encoding/json. Each line of its input is one in base64, "1" before it where a Decoder is to read it; each line it writes
// is what it made of one, in JSON, or "E" and why it did not.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
)

type platform struct {
	OS           string   `json:"os"`
	Architecture string   `json:"architecture"`
	OSFeatures   []string `json:"os.features"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls"`
	Annotations map[string]string `json:"annotations"`
	Data        []byte            `json:"data"`
	Platform    *platform         `json:"platform"`
}

type document struct {
	SchemaVersion int                 `json:"schemaVersion"`
	Config        descriptor          `json:"config"`
	Layers        []descriptor        `json:"layers"`
	Subject       *descriptor         `json:"subject"`
	Kind          string              `json:"kind"`
	Gid           uint32              `json:"gid"`
	OK            bool                `json:"ok"`
	Named         map[string]platform `json:"named"`
	Pointers      []*platform         `json:"pointers"`
	Lists         [][]string          `json:"lists"`
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		data, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line)))
		if err != nil {
			panic(err)
		}
		var found document
		if data[0] == '1' {
			err = json.NewDecoder(bytes.NewReader(data[1:])).Decode(&found)
		} else {
			err = json.Unmarshal(data[1:], &found)
		}
		if err != nil {
			fmt.Fprintf(out, "E %q\n", err)
			continue
		}
		text, err := json.Marshal(found)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(out, "%s\n", text)
	}
}
