package wal

import (
	"errors"
	"path/filepath"

	"github.com/sluicemq/sluice/internal/vfs"
)

// Report is what Verify found.
type Report struct {
	Files  []FileReport
	Spares int // zero-filled files that wait for use
	Shards []RecoveredShard
	Torn   *TornTail // what Open would cut
	// Damages as in Recovery.
	Damages []Damage
	// Entries replays what was found, from the files as they are.
	Entries *Recovery
}

// FileReport describes one file.
type FileReport struct {
	Seq             uint64
	Size, Used      int64 // bytes
	Groups, Records int   // that are valid
	Final           bool  // closed by a final group
	Shards          []ShardRange
}

// Verify reads a log offline, all of it, and changes nothing. payload is as
// Options.VerifyPayload. An error means that the directory or a file could not be
// read; whatever is wrong with the contents is in the report.
func Verify(fsys vfs.FS, dir string, payload func(b []byte, crc uint32) bool) (Report, error) {
	list, err := listDir(fsys, dir)
	if err != nil {
		return Report{}, err
	}
	s, err := scanDir(fsys, dir, list.files, payload)
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Spares: len(list.spares), Shards: s.index.recovered(s.damages),
		Torn: s.torn, Damages: s.damages,
	}
	r.Entries = &Recovery{
		Shards: r.Shards, Files: len(s.files), Bytes: s.bytes, Torn: s.torn, Damages: s.damages,
		read: fileReader(fsys, dir), index: s.index, seqs: s.seqs(),
	}
	ranges := s.index.ranges(len(s.files))
	for i, f := range s.files {
		r.Files = append(r.Files, FileReport{
			Seq: f.seq, Size: f.size, Used: f.end, Groups: f.groups, Records: f.records,
			Final: f.final, Shards: sortedRanges(ranges[i]),
		})
	}
	return r, nil
}

// fileReader reads payloads of a log that is not open.
func fileReader(fsys vfs.FS, dir string) func(pos Position, off int, buf []byte) error {
	return func(pos Position, off int, buf []byte) error {
		f, err := fsys.Open(filepath.Join(dir, fileName(pos.Seq)))
		if err != nil {
			return err
		}
		return errors.Join((&file{f: f}).readAt(pos, off, buf), f.Close())
	}
}
