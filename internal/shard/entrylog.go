package shard

import (
	"encoding/binary"
	"fmt"
	"sort"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/sluicemq/sluice/internal/buf"
	"github.com/sluicemq/sluice/internal/wal"
)

// refLen is the length of what raft sees of an entry.
const refLen = 16

// payload is a batch: its header and the chunks of its parts, with one reference each.
type payload struct {
	header []byte
	chunks []*buf.Chunk
	vec    [][]byte // header and chunks, as the WAL writes them
	crc    uint32   // of the header
	size   int
	refs   int // of its slot and of the writes that are on their way
}

func (p *payload) release() {
	if p.refs--; p.refs > 0 {
		return
	}
	for _, c := range p.chunks {
		c.Release()
	}
	p.chunks, p.vec = nil, nil
}

// slot is what the shard knows of one entry.
type slot struct {
	gen uint64 // proposal number, 0 for raft's own entries
	len uint32
	crc uint32
	pos wal.Position // Seq 0 until durable
	mem *payload     // until applied
	cc  []byte       // data of a configuration change, which raft needs by value
	typ pb.EntryType
}

// termRun says that entries from first on have this term.
type termRun struct{ first, term uint64 }

// entryLog is raft's view of the log: terms as runs, positions by index. It
// implements raft.Storage and never touches a disk.
type entryLog struct {
	first uint64 // index of slots[0]
	slots []slot
	terms []termRun // ascending; the first one covers first-1
	hs    pb.HardState
	conf  *pb.ConfState // as of what is applied
	// snapshot gives what a follower needs that lacks what was compacted.
	snapshot func() (*pb.Snapshot, error)
	// joined: the configuration has changed since the first start. A node without
	// anything can't begin with the first entry then, since no entry says who voted
	// at first.
	joined bool
}

func newEntryLog(first, prevTerm uint64, conf *pb.ConfState) *entryLog {
	return &entryLog{first: first, terms: []termRun{{first - 1, prevTerm}}, conf: conf}
}

// restart empties the log: it begins after an installed snapshot.
func (l *entryLog) restart(index, term uint64, conf *pb.ConfState) {
	l.truncateFrom(l.first)
	l.first, l.slots, l.conf = index+1, nil, conf
	l.terms = []termRun{{index, term}}
}

func (l *entryLog) last() uint64 { return l.first + uint64(len(l.slots)) - 1 }

func (l *entryLog) slot(i uint64) *slot {
	if i < l.first || i > l.last() {
		return nil
	}
	return &l.slots[i-l.first]
}

func (l *entryLog) termOf(i uint64) uint64 {
	k := sort.Search(len(l.terms), func(k int) bool { return l.terms[k].first > i })
	return l.terms[k-1].term
}

// put stores an entry, dropping what stood at its index and after: a new leader's
// suffix replaces the old one.
func (l *entryLog) put(index, term uint64, s slot) {
	l.truncateFrom(index)
	if index != l.last()+1 {
		panic(fmt.Sprintf("shard: entry %d after %d", index, l.last()))
	}
	l.slots = append(l.slots, s)
	if l.terms[len(l.terms)-1].term != term {
		l.terms = append(l.terms, termRun{index, term})
	}
}

func (l *entryLog) truncateFrom(index uint64) {
	for l.last() >= index && len(l.slots) > 0 {
		s := &l.slots[len(l.slots)-1]
		if s.mem != nil {
			s.mem.release()
		}
		l.slots[len(l.slots)-1] = slot{}
		l.slots = l.slots[:len(l.slots)-1]
	}
	for len(l.terms) > 1 && l.terms[len(l.terms)-1].first >= index {
		l.terms = l.terms[:len(l.terms)-1]
	}
}

// compact forgets entries up to and including index.
func (l *entryLog) compact(index uint64) {
	if index < l.first {
		return
	}
	index = min(index, l.last())
	term := l.termOf(index)
	n := int(index - l.first + 1)
	l.slots = append(l.slots[:0:0], l.slots[n:]...)
	l.first = index + 1
	keep := l.terms[:0]
	keep = append(keep, termRun{index, term})
	for _, t := range l.terms {
		if t.first > index {
			keep = append(keep, t)
		}
	}
	l.terms = keep
}

// InitialState implements raft.Storage.
func (l *entryLog) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return &l.hs, l.conf, nil
}

// Entries implements raft.Storage: references only. At least one entry, and no more
// than fit in most bytes: raft does not cut what storage gives, and with most 0 that is
// its promise of one entry a message.
func (l *entryLog) Entries(lo, hi, most uint64) ([]*pb.Entry, error) {
	if lo < l.first {
		return nil, raft.ErrCompacted
	}
	if hi > l.last()+1 {
		return nil, raft.ErrUnavailable
	}
	var out []*pb.Entry
	size := uint64(0)
	for i := lo; i < min(hi, lo+64); i++ {
		s := l.slot(i)
		e := &pb.Entry{Type: s.typ.Enum(), Index: new(i), Term: new(l.termOf(i)), Data: s.data()}
		size += uint64(proto.Size(e))
		if len(out) > 0 && size > most {
			break
		}
		out = append(out, e)
		if size >= most {
			break
		}
	}
	return out, nil
}

func (s *slot) data() []byte {
	if s.typ != pb.EntryNormal {
		return s.cc
	}
	if s.gen == 0 {
		return nil
	}
	return appendRef(nil, s.gen, s.len)
}

// Term implements raft.Storage.
func (l *entryLog) Term(i uint64) (uint64, error) {
	if i < l.first-1 || i == 0 && l.joined {
		return 0, raft.ErrCompacted
	}
	if i > l.last() {
		return 0, raft.ErrUnavailable
	}
	return l.termOf(i), nil
}

// LastIndex implements raft.Storage.
func (l *entryLog) LastIndex() (uint64, error) { return l.last(), nil }

// FirstIndex implements raft.Storage.
func (l *entryLog) FirstIndex() (uint64, error) { return l.first, nil }

// Snapshot implements raft.Storage.
func (l *entryLog) Snapshot() (*pb.Snapshot, error) { return l.snapshot() }

// appendRef encodes what raft carries for a payload.
func appendRef(dst []byte, gen uint64, length uint32) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, gen)
	dst = binary.LittleEndian.AppendUint32(dst, length)
	return binary.LittleEndian.AppendUint32(dst, 0)
}

func parseRef(b []byte) (gen uint64, length uint32, ok bool) {
	if len(b) != refLen {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), true
}
