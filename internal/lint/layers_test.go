package lint

// layer says for one package what of sluice it may import.
type layer struct {
	path string   // below the module
	pure bool     // no I/O, clock, goroutine, lock, context or randomness: see pureBans
	sees []string // what it may import, nothing else; each stands further up in layers
}

// layers is the whole import graph, from the leaves to the program: a package
// sees only what stands above it in this list, so there can be no cycle, and of
// that only what its entry names. Tests of a package may import anything above it.
//
// A new package gets a line here and one in the map of docs/ARCHITECTURE.md. A
// new edge is a decision: say in the commit why the package must know the other.
var layers = []layer{
	{path: "internal/buf"},
	{path: "internal/berr"},
	{path: "internal/access", pure: true},
	{path: "internal/vfs"},
	{path: "internal/hist"}, // takes its time from its callers; atomics are all that keeps it from pure
	{path: "internal/planted", pure: true},
	{path: "internal/msg", pure: true, sees: []string{"internal/buf"}},
	{path: "internal/proto/amqp/amqpwire", pure: true},
	{path: "internal/route", pure: true},
	{path: "internal/meta", pure: true, sees: []string{"internal/berr", "internal/route"}},
	{path: "internal/queue", pure: true, sees: []string{"internal/msg", "internal/planted"}},
	{path: "internal/wal", sees: []string{"internal/planted", "internal/vfs"}},
	{path: "internal/store", sees: []string{"internal/buf", "internal/msg", "internal/planted", "internal/vfs"}},
	// shard knows raft and the log, not what a command means.
	{path: "internal/shard", sees: []string{"internal/buf", "internal/hist", "internal/msg", "internal/planted", "internal/wal"}},
	{path: "internal/engine", sees: []string{
		"internal/buf", "internal/hist", "internal/msg", "internal/planted", "internal/queue", "internal/shard", "internal/store",
		"internal/vfs", "internal/wal",
	}},
	{path: "internal/sim", sees: []string{
		"internal/engine", "internal/msg", "internal/queue", "internal/shard", "internal/store", "internal/vfs",
	}},
	{path: "internal/sim/cmd/sim", sees: []string{"internal/sim"}},
	{path: "internal/broker", sees: []string{
		"internal/access", "internal/berr", "internal/engine", "internal/meta", "internal/msg", "internal/queue",
		"internal/route", "internal/shard", "internal/vfs",
	}},
	// A protocol sees the façade and the vocabulary, neither shards nor files.
	{path: "internal/proto/amqp", sees: []string{
		"internal/berr", "internal/broker", "internal/buf", "internal/msg",
		"internal/proto/amqp/amqpwire", "internal/queue", "internal/route",
	}},
	{path: "internal/config"},
	{path: "internal/server", sees: []string{"internal/broker", "internal/config", "internal/engine", "internal/proto/amqp"}},
	{path: "internal/bench"},
	{path: "internal/cli", sees: []string{
		"internal/bench", "internal/broker", "internal/config", "internal/server", "internal/vfs",
	}},
	{path: "cmd/sluice", sees: []string{"internal/cli"}},
	{path: "internal/torture"},
	{path: "internal/torture/cmd/torture", sees: []string{"internal/torture"}},
	{path: "test/compare/report", sees: []string{"internal/bench"}},
	{path: "test/interop/cmd/interop"},
	{path: "test/flat/cmd/flat", sees: []string{"internal/bench", "internal/engine", "internal/hist"}},
	{path: "internal/lint"},
}
