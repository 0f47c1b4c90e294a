package broker

import (
	"log/slog"

	"github.com/sluicemq/sluice/internal/engine"
	"github.com/sluicemq/sluice/internal/vfs"
)

// Check reads a data directory that no broker has open, says what is in it and what is
// wrong with it, by the names of queues, and changes nothing.
func Check(fsys vfs.FS, dir string) (*engine.CheckReport, error) {
	m := newMetaMachine(slog.New(slog.DiscardHandler))
	return engine.Check(fsys, dir, &engine.Names{Meta: m, Loaded: m.restored, QueueOf: m.queueOf})
}
