package server

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMemoryTotal: the least of what limits the process counts.
func TestMemoryTotal(t *testing.T) {
	const meminfo = "MemTotal:        8000000 kB\nMemFree: 1 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing": {nil, 0},
		"machine": {map[string]string{"proc/meminfo": meminfo}, 8000000 << 10},
		"version 2": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1048576\n",
		}, 1 << 20},
		"container": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "2097152\n",
		}, 2 << 20},
		"version 1": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   "9223372036854771712\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "3145728\n",
		}, 3 << 20},
		"no limit": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 8000000 << 10},
	} {
		root := t.TempDir()
		for p, text := range c.files {
			p = filepath.Join(root, p)
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, from := memoryTotal(root); got != c.want {
			t.Errorf("%s: %d from %q, want %d", name, got, from, c.want)
		}
	}
}

// TestMaxConnections: never more than there are descriptors for.
func TestMaxConnections(t *testing.T) {
	most := maxConnections(0)
	if most <= 0 || maxConnections(1<<40) != most || maxConnections(1) != 1 {
		t.Fatalf("%d, %d, %d", most, maxConnections(1<<40), maxConnections(1))
	}
}
