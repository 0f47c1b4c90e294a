package access

import (
	"bytes"
	"crypto/md5" //nolint:gosec // read for accounts that were made by others; new ones never use it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
)

// Hashing names the algorithm of a stored password as definitions files do.
type Hashing string

// The algorithms: base64 of a salt of 4 bytes and the digest of salt and password.
const (
	SHA256 Hashing = "rabbit_password_hashing_sha256"
	SHA512 Hashing = "rabbit_password_hashing_sha512"
	MD5    Hashing = "rabbit_password_hashing_md5"
)

// SaltLen is the length of a salt in bytes.
const SaltLen = 4

// sum computes the digest; nil for an unknown algorithm. The empty name is SHA256.
func (h Hashing) sum(salted []byte) []byte {
	switch h {
	case "", SHA256:
		s := sha256.Sum256(salted)
		return s[:]
	case SHA512:
		s := sha512.Sum512(salted)
		return s[:]
	case MD5:
		s := md5.Sum(salted) //nolint:gosec // see the import
		return s[:]
	}
	return nil
}

// Check says what is wrong with a stored password: an unknown algorithm, or a text that
// isn't of its form. The empty text is an account that nobody can log in to by password.
func (h Hashing) Check(stored string) error {
	n := len(h.sum(nil))
	if n == 0 {
		return fmt.Errorf("unknown hashing algorithm %q", string(h))
	}
	if stored == "" {
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(stored)
	if err != nil || len(raw) != SaltLen+n {
		return fmt.Errorf("password hash isn't base64 of %d bytes, as %s makes", SaltLen+n, h)
	}
	return nil
}

// Hash makes what is stored for a password.
func (h Hashing) Hash(salt [SaltLen]byte, password string) string {
	salted := append(salt[:], password...)
	return base64.StdEncoding.EncodeToString(append(bytes.Clone(salt[:]), h.sum(salted)...))
}

// Verify compares a password with what is stored, in constant time. An account without
// a password, and an empty password, never match.
func (h Hashing) Verify(stored, password string) bool {
	raw, err := base64.StdEncoding.DecodeString(stored)
	if err != nil || len(raw) <= SaltLen || password == "" {
		return false
	}
	want := h.sum(append(bytes.Clone(raw[:SaltLen]), password...))
	return len(want) > 0 && subtle.ConstantTimeCompare(raw[SaltLen:], want) == 1
}
