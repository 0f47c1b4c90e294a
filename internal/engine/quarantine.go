package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/vfs"
)

// QuarantineDir is where, in the data directory, the bytes of what is damaged are put
// aside, each piece as <name>.bin with its description as <name>.json.
const QuarantineDir = "quarantine"

// rawMax bounds the bytes that are copied of one damaged place.
const rawMax = 64 << 20

// Incident describes one damaged place and what was lost by it: the contents of a
// description in quarantine.
type Incident struct {
	Time   time.Time `json:"time"`
	Path   string    `json:"path"` // relative to the data directory
	Pos    int64     `json:"pos"`  // bytes from the file's start
	Len    int64     `json:"len"`
	Reason string    `json:"reason"`
	Shard  uint32    `json:"shard"`
	// FirstEntry and LastEntry are the entries of the shard's log that are concerned;
	// 0 if none is, or which is unknown.
	FirstEntry uint64 `json:"first_entry,omitempty"`
	LastEntry  uint64 `json:"last_entry,omitempty"`
	// Lost are the messages that are lost, as far as known.
	Lost []Loss `json:"lost,omitempty"`
	// Unknown says what can't be known; empty if Lost is all.
	Unknown string `json:"unknown,omitempty"`
	// Raw is the file with the bytes, empty if there are none.
	Raw string `json:"raw,omitempty"`
}

// Loss is a range of messages of one lane.
type Loss struct {
	Log   msg.LogID  `json:"log"`
	Lane  uint8      `json:"lane"`
	VHost string     `json:"vhost,omitempty"`
	Queue string     `json:"queue,omitempty"` // empty if no queue has the log
	First msg.Offset `json:"first"`
	Last  msg.Offset `json:"last"` // inclusive
}

// name is that of an incident's files: the place, so that what is met again is the same.
func (in *Incident) name() string {
	return fmt.Sprintf("%s-%d", strings.ReplaceAll(filepath.ToSlash(in.Path), "/", "-"), in.Pos)
}

// quarantine keeps the incidents of a data directory. Safe for concurrent use.
type quarantine struct {
	fs  vfs.FS
	dir string // the data directory
	log *slog.Logger
	now func() time.Time
	// queueOf names the queue of a log, empty if there is none; may be nil.
	queueOf func(shard uint32, log msg.LogID) (vhost, queue string)

	mu   sync.Mutex // held while files are written: this is rare
	list map[string]*Incident
}

func openQuarantine(fsys vfs.FS, dir string, log *slog.Logger) (*quarantine, error) {
	q := &quarantine{fs: fsys, dir: dir, log: log, now: time.Now, list: map[string]*Incident{}}
	list, err := readQuarantine(fsys, dir)
	for i := range list {
		q.list[list[i].name()] = &list[i]
	}
	return q, err
}

// readQuarantine reads the descriptions in a data directory, by name.
func readQuarantine(fsys vfs.FS, dir string) ([]Incident, error) {
	names, err := fsys.List(filepath.Join(dir, QuarantineDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Incident
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		b, err := vfs.ReadFile(fsys, filepath.Join(dir, QuarantineDir, name))
		if err != nil {
			return nil, err
		}
		var in Incident
		if err := json.Unmarshal(b, &in); err != nil { // it was damaged itself
			in = Incident{Path: filepath.Join(QuarantineDir, name), Reason: "a description that can't be read"}
		}
		list = append(list, in)
	}
	return list, nil
}

// add puts a damaged place aside, or adds to what is known of it, and tells the
// operator. Nothing may be forgotten of what is lost before add has returned nil.
func (q *quarantine) add(in Incident) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	name := in.name()
	old := q.list[name]
	if old != nil {
		in.Time, in.Raw = old.Time, old.Raw
		if in.Unknown == "" {
			in.Unknown = old.Unknown
		}
		lost, news := mergeLosses(old.Lost, in.Lost)
		if !news && in.Unknown == old.Unknown {
			return nil
		}
		in.Lost = lost
	} else {
		in.Time = q.now().UTC().Truncate(time.Second)
	}
	for i := range in.Lost {
		if l := &in.Lost[i]; q.queueOf != nil && l.Queue == "" {
			l.VHost, l.Queue = q.queueOf(in.Shard, l.Log)
		}
	}
	if err := q.write(name, &in); err != nil {
		return fmt.Errorf("quarantine of %s: %w", name, err)
	}
	q.list[name] = &in
	q.tell(&in)
	return nil
}

func (q *quarantine) tell(in *Incident) {
	q.log.Error("damage", "path", in.Path, "pos", in.Pos, "len", in.Len, "reason", in.Reason,
		"shard", in.Shard, "first_entry", in.FirstEntry, "last_entry", in.LastEntry,
		"lost", in.lossText(), "unknown", in.Unknown, "quarantine", filepath.Join(QuarantineDir, in.name()+".json"))
}

// lossText names what was lost.
func (in *Incident) lossText() string {
	var b strings.Builder
	for i, l := range in.Lost {
		if i > 0 {
			b.WriteString("; ")
		}
		if i == 20 {
			fmt.Fprintf(&b, "and %d more", len(in.Lost)-i)
			break
		}
		b.WriteString(l.text())
	}
	return b.String()
}

func (l *Loss) text() string {
	name := fmt.Sprintf("log %d", l.Log)
	switch {
	case msg.IsOutbox(l.Log):
		name = fmt.Sprintf("outbox for shard %d", msg.OutboxTarget(l.Log))
	case l.Queue != "":
		name = fmt.Sprintf("queue %q of %q (log %d)", l.Queue, l.VHost, l.Log)
	}
	name = fmt.Sprintf("%s offsets %d to %d", name, l.First, l.Last)
	if l.Lane != 0 {
		name = fmt.Sprintf("%s of lane %d", name, l.Lane)
	}
	return name
}

// mergeLosses joins two lists and says whether b has anything that a has not.
func mergeLosses(a, b []Loss) (all []Loss, news bool) {
	all = slices.Clone(a)
	for _, l := range b {
		known := slices.ContainsFunc(a, func(o Loss) bool {
			return o.Log == l.Log && o.Lane == l.Lane && o.First <= l.First && o.Last >= l.Last
		})
		if !known {
			all, news = append(all, l), true
		}
	}
	return all, news
}

// write makes the copy and the description durable.
func (q *quarantine) write(name string, in *Incident) error {
	dir := filepath.Join(q.dir, QuarantineDir)
	if err := q.fs.MkdirAll(dir); err != nil {
		return err
	}
	if in.Raw == "" {
		if b := q.raw(in); len(b) > 0 {
			if err := vfs.WriteFileAtomic(q.fs, filepath.Join(dir, name+".bin"), b); err != nil {
				return err
			}
			in.Raw = name + ".bin"
		}
	}
	b, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFileAtomic(q.fs, filepath.Join(dir, name+".json"), append(b, '\n'))
}

// raw reads the damaged bytes; what can't be read is left as zeros.
func (q *quarantine) raw(in *Incident) []byte {
	f, err := q.fs.Open(filepath.Join(q.dir, in.Path))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // it was only read
	size, err := f.Size()
	n := min(in.Len, size-in.Pos, rawMax)
	if err != nil || n <= 0 {
		return nil
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, in.Pos); err == nil {
		return b
	}
	const sector = 4096
	for at := int64(0); at < n; at += sector {
		_, _ = f.ReadAt(b[at:min(at+sector, n)], in.Pos+at) // as much as there is
	}
	return b
}
