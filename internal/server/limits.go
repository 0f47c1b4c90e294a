package server

import (
	"bufio"
	"bytes"
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluicemq/sluice/internal/config"
)

// descriptorsKept is how many file descriptors are kept from connections: the store's
// open files, the write-ahead log and what is accepted only to be refused.
const descriptorsKept = 512

// maxConnections is the limit that is set, or as many as there are file descriptors for.
func maxConnections(set int) int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return set
	}
	most := int(min(l.Cur, math.MaxInt32))
	most = max(most-descriptorsKept, most/2)
	if set > 0 {
		return min(set, most)
	}
	return most
}

// limitMemory returns how many bytes the process may use: what is configured, else a
// share of what it has. The garbage collector is told, unless the environment has told
// it something else.
func limitMemory(c config.Memory, log *slog.Logger) int64 {
	limit, from := c.LimitBytes, "configuration"
	if limit == 0 {
		var total int64
		if total, from = memoryTotal("/"); total == 0 {
			log.Warn("no memory limit: nothing tells how much there is")
			return 0
		}
		limit = int64(float64(total) * c.Share)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	log.Info("memory limit", "bytes", limit, "from", from)
	return limit
}

// memoryTotal returns what the process may have: the least limit of its control groups,
// else all of the machine's memory; 0 if nothing tells. root is where the file systems of
// the kernel are.
func memoryTotal(root string) (total int64, from string) {
	read := func(p string) []byte {
		b, _ := os.ReadFile(filepath.Join(root, p)) // what can't be read tells nothing
		return b
	}
	least := func(p string) {
		n, err := strconv.ParseInt(strings.TrimSpace(string(read(p))), 10, 64)
		// Version 1 writes "no limit" as a number near the largest.
		if err == nil && n > 0 && n < 1<<60 && (total == 0 || n < total) {
			total, from = n, p
		}
	}
	groups := bufio.NewScanner(bytes.NewReader(read("proc/self/cgroup")))
	for groups.Scan() {
		f := strings.SplitN(groups.Text(), ":", 3) // hierarchy:controllers:path
		if len(f) != 3 {
			continue
		}
		dir, file := "", ""
		switch {
		case f[0] == "0" && f[1] == "":
			dir, file = "sys/fs/cgroup", "memory.max"
		case strings.Contains(","+f[1]+",", ",memory,"):
			dir, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A limit of a group holds for those below it. In a container the path may be
		// that of the host, of which only the root is seen.
		for p := path.Clean("/" + f[2]); ; p = path.Dir(p) {
			least(path.Join(dir, p, file))
			if p == "/" {
				break
			}
		}
	}
	if machine := physical(read("proc/meminfo")); machine > 0 && (total == 0 || machine < total) {
		return machine, "proc/meminfo"
	}
	return total, from
}

// physical reads MemTotal.
func physical(meminfo []byte) int64 {
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // 0: nothing is told
			return n << 10
		}
	}
	return 0
}
