package msg

import "encoding/binary"

// Salvaged is what can be used of a damaged batch.
type Salvaged struct {
	// HeaderSound: time, links and sequences are those that were encoded; else they are 0.
	HeaderSound bool
	TimeMS      int64
	Parts       []SalvagedPart // those whose commands are sound, in order
	// Lost counts the parts whose commands are lost, -1 if nobody knows.
	Lost int
}

// SalvagedPart is a part with sound commands.
type SalvagedPart struct {
	Part
	Pos   int  // of the submission in the batch
	Sound bool // its records are sound too
}

// partsMax bounds the parts that are looked for when the header is damaged.
const partsMax = 4096

// SalvageBatch takes apart a batch that VerifyBatch refuses.
func SalvageBatch(payload []byte, headerCRC uint32) Salvaged {
	le := binary.LittleEndian
	if b, err := ParseBatch(payload); err == nil && CRC(payload[:BatchHeaderLen(b.n)]) == headerCRC {
		return b.salvage()
	}
	// The table may be sound although parts don't parse, which ParseBatch can't see.
	out := Salvaged{Lost: -1}
	for n := 1; n <= partsMax && BatchHeaderLen(n) < len(payload); n++ {
		pos, parts := BatchHeaderLen(n), out.Parts[:0]
		for len(parts) < n && pos+submissionHeaderLen <= len(payload) {
			end := pos + int(le.Uint32(payload[pos:]))
			if end < pos || end > len(payload) {
				break
			}
			s, err := ParseSubmission(payload[pos:end:end])
			if err != nil || !s.VerifyCommands() {
				break
			}
			parts = append(parts, SalvagedPart{Part: Part{Sub: s}, Pos: pos, Sound: s.Verify()})
			pos = end
		}
		if len(parts) == n && pos == len(payload) {
			out.Parts, out.Lost = parts, 0
			return out
		}
	}
	out.Parts = nil
	return out
}

// salvage uses a table that is sound.
func (b Batch) salvage() Salvaged {
	le := binary.LittleEndian
	out := Salvaged{HeaderSound: true, TimeMS: b.TimeMS}
	pos := BatchHeaderLen(b.n)
	for i := range b.n {
		h := b.raw[BatchHeaderLen(i):]
		l := int(le.Uint32(h[16:]))
		s, err := ParseSubmission(b.raw[pos : pos+l : pos+l])
		if err == nil && s.VerifyCommands() {
			sound := s.Verify() && s.SumOf() == le.Uint32(h[20:])
			out.Parts = append(out.Parts, SalvagedPart{Part{le.Uint64(h), le.Uint64(h[8:]), s}, pos, sound})
		} else {
			out.Lost++
		}
		pos += l
	}
	return out
}
