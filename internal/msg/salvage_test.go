package msg

import "testing"

// TestSalvageBatch flips each bit of a batch: what is found sound is what was encoded,
// and at most one submission is lost or has damaged records.
func TestSalvageBatch(t *testing.T) {
	var parts []Part
	for i := range uint64(4) {
		var b Builder
		for range 3 {
			b.Append([]Target{{Log: i + 1}}, &Envelope{Key: []byte("k")}, make([]byte, 30))
		}
		b.Settle(7, 0, Acked, []Range{{First: i, Count: 2}})
		parts = append(parts, Part{Link: 5, Seq: i + 1, Sub: Submission(b.Finish().Bytes())})
	}
	header := AppendBatchHeader(nil, 1234, 1, parts)
	crc := CRC(header)
	whole := header
	var at []int
	for _, p := range parts {
		at = append(at, len(whole))
		whole = append(whole, p.Sub...)
	}
	if !VerifyBatch(whole, crc) {
		t.Fatal("not what was encoded")
	}
	for bit := range 8 * len(whole) {
		b := append([]byte(nil), whole...)
		b[bit/8] ^= 1 << (bit % 8)
		found := SalvageBatch(b, crc)
		inHeader := bit/8 < len(header)
		if inHeader == found.HeaderSound || found.HeaderSound && found.TimeMS != 1234 {
			t.Fatalf("bit %d: %+v", bit, found)
		}
		unsound := found.Lost
		for _, p := range found.Parts {
			i := 0
			for at[i] != p.Pos {
				i++
			}
			if !p.Sound {
				unsound++
			} else if string(p.Sub) != string(parts[i].Sub) {
				t.Fatalf("bit %d: part %d is another", bit, i)
			}
			if cmd := parts[i].Sub.cmdPos(); string(p.Sub[cmd:]) != string(parts[i].Sub[cmd:]) {
				t.Fatalf("bit %d: commands of part %d are others", bit, i)
			}
			if found.HeaderSound && (p.Link != 5 || p.Seq != parts[i].Seq) {
				t.Fatalf("bit %d: part %d at %d of link %d", bit, i, p.Seq, p.Link)
			}
		}
		if len(found.Parts)+found.Lost != len(parts) || inHeader && unsound > 0 || unsound > 1 {
			t.Fatalf("bit %d: %+v", bit, found)
		}
	}
	if found := SalvageBatch(nil, crc); found.Lost != -1 || len(found.Parts) > 0 {
		t.Fatalf("%+v", found)
	}
}
