"""More machines than one: fleets of servers on Ray (ray/, which needs the extra [ray])."""
