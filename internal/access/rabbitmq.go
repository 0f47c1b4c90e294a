package access

// Permission is a user's rights in a virtual host as RabbitMQ has them: three regular
// expressions over the names of exchanges and queues.
type Permission struct{ Configure, Write, Read string }

// Rows are the permission's rows.
func (p Permission) Rows(user, vhost string) []Row {
	row := func(op Op, text string) Row {
		return Row{User: user, VHost: vhost, Kinds: Resource, Ops: op, Pattern: Pattern{text, Regexp}}
	}
	return []Row{row(Configure, p.Configure), row(Write, p.Write), row(Read, p.Read)}
}

// TopicPermission restricts the routing keys of one exchange: to publish with, and to
// bind with.
type TopicPermission struct{ Exchange, Write, Read string }

// Rows are the permission's rows.
func (p TopicPermission) Rows(user, vhost string) []Row {
	row := func(op Op, text string) Row {
		return Row{User: user, VHost: vhost, Kinds: Topic, Within: p.Exchange, Ops: op, Pattern: Pattern{text, Regexp}}
	}
	return []Row{row(Write, p.Write), row(Read, p.Read)}
}
