package engine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluicemq/sluice/internal/msg"
	"github.com/sluicemq/sluice/internal/shard"
	"github.com/sluicemq/sluice/internal/store"
	"github.com/sluicemq/sluice/internal/vfs"
	"github.com/sluicemq/sluice/internal/wal"
)

// CheckReport says what is in a data directory and what is wrong with it.
type CheckReport struct {
	Store *store.CheckReport
	WAL   wal.Report
	// Quarantine lists what was damaged and put aside before.
	Quarantine []Incident
	// Bodies are the messages whose large bodies are not all there.
	Bodies []LostBody
}

// Check reads a data directory that no broker has open and changes nothing. names may be
// nil: then queues are not named.
func Check(fsys vfs.FS, dir string, names *Names) (*CheckReport, error) {
	if _, err := fsys.Stat(filepath.Join(dir, "MANIFEST")); err != nil {
		return nil, fmt.Errorf("%s is no data directory: %w", dir, err)
	}
	lock, err := fsys.Lock(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	defer func() { _ = lock.Close() }() // nothing was written
	st, err := store.Check(fsys, dir)
	if err != nil {
		return nil, err
	}
	w, err := wal.Verify(fsys, filepath.Join(dir, "wal"), shard.VerifyPayload)
	if err != nil {
		return nil, err
	}
	aside, err := readQuarantine(fsys, dir)
	if err != nil {
		return nil, err
	}
	o := offline{fs: fsys, dir: dir, store: st, wal: w.Entries}
	bodies, err := o.bodies(names)
	if err != nil {
		return nil, err
	}
	return &CheckReport{Store: st, WAL: w, Quarantine: aside, Bodies: bodies}, nil
}

// Sound says whether everything could be read, now and before.
func (r *CheckReport) Sound() bool {
	return r.Store.Sound() && len(r.WAL.Damages) == 0 && len(r.Quarantine) == 0 && len(r.Bodies) == 0
}

// Text describes the report for people.
func (r *CheckReport) Text() string {
	var b strings.Builder
	for _, f := range r.WAL.Files {
		fmt.Fprintf(&b, "wal file %d: %d bytes in use, %d groups, %d records\n", f.Seq, f.Used, f.Groups, f.Records)
	}
	for _, s := range r.WAL.Shards {
		fmt.Fprintf(&b, "wal shard %d: term %d, entries %d to %d\n", s.Shard, s.Term, s.FirstEntry, s.LastIndex)
	}
	if t := r.WAL.Torn; t != nil {
		fmt.Fprintf(&b, "wal file %d: incomplete last write at byte %d (nothing in it was confirmed)\n", t.Seq, t.Off)
	}
	for _, s := range r.Store.Shards {
		var bytes int64
		var entries uint64
		for _, g := range s.Segments {
			bytes, entries = bytes+g.Bytes, entries+g.Entries
		}
		fmt.Fprintf(&b, "shard %d: %d segments, %d bytes, %d messages, checkpoint at entry %d with %d keys\n",
			s.Shard, len(s.Segments), bytes, entries, s.Checkpoint.Index, s.Keys)
	}
	for _, o := range r.Store.Orphans {
		fmt.Fprintf(&b, "leftover of a crash: %s\n", o)
	}
	for _, d := range r.WAL.Damages {
		fmt.Fprintf(&b, "DAMAGE in wal file %d at byte %d: %s (shard %d, entries %d to %d)\n", d.Seq, d.Off, d.Reason, d.Shard, d.First, d.Last)
	}
	for _, d := range r.Store.Damages {
		fmt.Fprintf(&b, "DAMAGE: %v\n", d)
	}
	for _, x := range r.Bodies {
		fmt.Fprintf(&b, "DAMAGE: message without its body: %s: part %d: %s\n", x.text(), x.Part, x.Reason)
	}
	for i := range r.Quarantine {
		in := &r.Quarantine[i]
		fmt.Fprintf(&b, "QUARANTINE since %s: %s at byte %d: %s", in.Time.Format(time.RFC3339), in.Path, in.Pos, in.Reason)
		if s := in.lossText(); s != "" {
			fmt.Fprintf(&b, "; lost: %s", s)
		}
		if in.Unknown != "" {
			fmt.Fprintf(&b, "; %s", in.Unknown)
		}
		b.WriteString("\n")
	}
	if r.Sound() {
		b.WriteString("sound\n")
	}
	return b.String()
}

// CheckSummary is the report for programs.
type CheckSummary struct {
	Sound      bool           `json:"sound"`
	Damages    []CheckDamage  `json:"damages"`    // what can't be read now
	Quarantine []Incident     `json:"quarantine"` // what was put aside before
	Queues     []QueueDamages `json:"queues"`     // messages in quarantine, by queue
	Bodies     []LostBody     `json:"bodies"`     // messages whose large bodies are not all there
	TornTail   bool           `json:"torn_tail"`  // the end of a crash; no damage
}

// CheckDamage is a place that can't be read.
type CheckDamage struct {
	Path       string     `json:"path"`
	Pos        int64      `json:"pos"`
	Len        int64      `json:"len"`
	Reason     string     `json:"reason"`
	Shard      uint32     `json:"shard"`
	FirstEntry uint64     `json:"first_entry,omitempty"`
	LastEntry  uint64     `json:"last_entry,omitempty"`
	Log        msg.LogID  `json:"log,omitempty"` // 0 if the messages are not known
	First      msg.Offset `json:"first,omitempty"`
	Last       msg.Offset `json:"last,omitempty"`
}

// QueueDamages says how much of a queue is in quarantine.
type QueueDamages struct {
	VHost    string    `json:"vhost,omitempty"`
	Queue    string    `json:"queue,omitempty"` // empty if no queue had the log
	Shard    uint32    `json:"shard"`
	Log      msg.LogID `json:"log"`
	Messages uint64    `json:"messages"`
}

// Summary returns the report for programs.
func (r *CheckReport) Summary() CheckSummary {
	s := CheckSummary{
		Sound: r.Sound(), TornTail: r.WAL.Torn != nil, Damages: []CheckDamage{},
		Bodies:     append([]LostBody{}, r.Bodies...),
		Quarantine: append([]Incident{}, r.Quarantine...), Queues: []QueueDamages{},
	}
	for i := range r.WAL.Damages {
		in := ofWAL(r.WAL.Damages[i].Shard, &r.WAL.Damages[i])
		s.Damages = append(s.Damages, CheckDamage{
			Path: in.Path, Pos: in.Pos, Len: in.Len, Reason: in.Reason, Shard: in.Shard,
			FirstEntry: in.FirstEntry, LastEntry: in.LastEntry,
		})
	}
	for _, d := range r.Store.Damages {
		x := CheckDamage{Path: d.Path, Pos: d.Pos, Len: d.Len, Reason: d.Reason, Shard: d.Shard}
		if d.HasRange {
			x.Log, x.First, x.Last = d.Log, d.First, d.Last
		}
		s.Damages = append(s.Damages, x)
	}
	for _, in := range r.Quarantine {
		for _, l := range in.Lost {
			i := slices.IndexFunc(s.Queues, func(q QueueDamages) bool { return q.Log == l.Log && q.Shard == in.Shard })
			if i < 0 {
				i = len(s.Queues)
				s.Queues = append(s.Queues, QueueDamages{VHost: l.VHost, Queue: l.Queue, Shard: in.Shard, Log: l.Log})
			}
			s.Queues[i].Messages += l.Last - l.First + 1
		}
	}
	return s
}
