package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	e := &env{out: io.Discard, name: "queues"}
	e.add("over 10 queues", 123_456.7, "/s", nil)
	if m := e.addMedian("compared", []float64{0.9, 0.7, 0.81}, "times", atLeast(0.8)); m != 0.81 {
		t.Errorf("median %v", m)
	}
	e.name = "exist"
	e.add("memory", 400.5, "MiB", atMost(400))
	var out strings.Builder
	printTable(&out, e.rows)
	want := `
scenario  what            value       goal           met
queues    over 10 queues  123,457 /s                 
queues    compared        0.81 times  >= 0.80 times  yes
exist     memory          401 MiB     <= 400 MiB     no

1 of 2 goals met
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
	b, err := json.Marshal(e.rows[1])
	if err != nil || string(b) != `{"scenario":"queues","what":"compared","value":0.81,"unit":"times","samples":[0.9,0.7,0.81],"goal":{"at_least":true,"bound":0.8},"met":true}` {
		t.Errorf("%s %v", b, err)
	}
}

func TestDocument(t *testing.T) {
	d := document{Started: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), Rows: []row{{What: "x", Value: 1}}}
	name, err := d.write(t.TempDir())
	if err != nil || !strings.HasSuffix(name, "/flat-20260504-030201.json") {
		t.Fatal(name, err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var back document
	if err := json.Unmarshal(b, &back); err != nil || len(back.Rows) != 1 || back.Rows[0].Value != 1 {
		t.Errorf("%s %v", b, err)
	}
}

func TestGoals(t *testing.T) {
	for _, c := range []struct {
		g    *goal
		v    float64
		want bool
	}{
		{atMost(3), 3, true},
		{atMost(3), 2.9, true},
		{atMost(3), 3.1, false},
		{atLeast(3), 3, true},
		{atLeast(3), 2.9, false},
		{atLeast(3), 3.1, true},
		{atMost(3), math.NaN(), false},
	} {
		if got := c.g.met(c.v); got != c.want {
			t.Errorf("%+v of %v: %v", *c.g, c.v, got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 7: "7", 0.123: "0.12", 9.876: "9.88", 12.34: "12.3", 99.96: "100.0", 123.4: "123",
		1234: "1,234", 12_345_678: "12,345,678", -1234.4: "-1,234", -123: "-123",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2 {
		t.Errorf("median %v", m)
	}
	if !math.IsNaN(median(nil)) {
		t.Error("a median of nothing")
	}
}

func TestField(t *testing.T) {
	text := []byte("Name:\tsluice\nVmHWM:\t  2048 kB\nVmRSS:\t   512 kB\nVmBad:\tx\n")
	for name, want := range map[string]int64{"VmRSS": 512, "VmHWM": 2048} {
		if n, err := field(text, name); err != nil || n != want {
			t.Errorf("%s: %d %v", name, n, err)
		}
	}
	for _, name := range []string{"Vm", "VmBad", "write_bytes"} {
		if n, err := field(text, name); err == nil {
			t.Errorf("%s: %d", name, n)
		}
	}
}

func TestChoose(t *testing.T) {
	all, err := choose("")
	if err != nil || len(all) != len(scenarios) {
		t.Fatal(len(all), err)
	}
	two, err := choose("amplify,exist")
	if err != nil || len(two) != 2 || two[0].name != "exist" || two[1].name != "amplify" {
		t.Errorf("%v %v", two, err)
	}
	if _, err := choose("exist,nothing"); err == nil || !strings.Contains(err.Error(), `"nothing"`) {
		t.Error(err)
	}
}

func TestSizes(t *testing.T) {
	s := sizes{1}
	var v flag.Value = &s
	if err := v.Set("10,1000"); err != nil || v.String() != "10,1000" || len(s) != 2 {
		t.Error(s, err)
	}
	for _, bad := range []string{"", "x", "1,,2", "0", "-3"} {
		if err := v.Set(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

// TestOpenIdle: the client says what a server of AMQP 0-9-1 waits for, in order, and
// takes an answer in pieces.
func TestOpenIdle(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan []byte, 1)
	go func() {
		var all []byte
		defer func() { heard <- all }()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in := bufio.NewReader(c)
		take := func(n int) {
			b := make([]byte, n)
			_, _ = io.ReadFull(in, b)
			all = append(all, b...)
		}
		frame := func() {
			head, _ := in.Peek(7)
			if len(head) == 7 {
				take(7 + int(head[5])<<8 + int(head[6]) + 1)
			}
		}
		take(8)
		start := methodFrame(0, 10<<16|10, strings.Repeat("x", 3000))
		_, _ = c.Write(start[:9])
		_, _ = c.Write(start[9:])
		frame()
		_, _ = c.Write(methodFrame(0, 10<<16|30, "\x00\x00\x00\x02\x00\x00\x00\x3c"))
		frame()
		frame()
		_, _ = c.Write(append([]byte("\x01\x00\x00\x00\x00\x00\x05\x00\x0a\x00\x3e\x00\xce"), methodFrame(0, 10<<16|41, "\x00")...))
		frame()
		_, _ = c.Write(methodFrame(1, 20<<16|11, "\x00\x00\x00\x00"))
	}()
	c, err := openIdle(t.Context(), ln.Addr().String())
	all := <-heard
	if err != nil {
		t.Fatalf("%v after %q", err, all)
	}
	_ = c.Close()
	for _, want := range []string{"AMQP\x00\x00\x09\x01\x01\x00\x00", "PLAIN\x00\x00\x00\x0c\x00guest\x00guest\x05en_US\xce", "\x00\x0a\x00\x28\x01/\x00\x00\xce\x01\x00\x01"} {
		if !bytes.Contains(all, []byte(want)) {
			t.Errorf("%q lacks %q", all, want)
		}
	}
}

func TestAwaitComplains(t *testing.T) {
	for name, in := range map[string][]byte{
		"closed":    methodFrame(0, 10<<16|50, "\x01\x40\x00"),
		"no method": {8, 0, 0, 0, 0, 0, 0, 0xCE},
		"cut off":   methodFrame(0, 10<<16|10, "abc")[:12],
	} {
		if err := await(bufio.NewReader(bytes.NewReader(in)), 20<<16|11); err == nil {
			t.Error(name)
		}
	}
	e := &env{out: io.Discard, settings: settings{Rounds: 0, Duration: time.Second}}
	if err := run(context.Background(), e, "", "", ""); err == nil {
		t.Error("took no rounds")
	}
}
